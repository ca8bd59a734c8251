"""Accessibility of what a page shows: names, alternatives, contrast, sizes, focus, as the browser computes them."""

# every visible text against the ground below it, as WCAG 2 computes it
_CONTRAST = """
() => {
  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => ({
    r: top.r * top.a + below.r * (1 - top.a),
    g: top.g * top.a + below.g * (1 - top.a),
    b: top.b * top.a + below.b * (1 - top.a),
    a: 1,
  });
  const luminance = ({ r, g, b }) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (a, b) => {
    const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (light + 0.05) / (dark + 0.05);
  };
  const ground = (element) => {
    const layers = [];
    for (let e = element; e !== null; e = e.parentElement) {
      if (Number(getComputedStyle(e).opacity) < 1) throw new Error(`see-through: ${e.className}`);
      layers.push(parse(getComputedStyle(e).backgroundColor));
      if (layers.at(-1).a === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), { r: 255, g: 255, b: 255, a: 1 });
  };
  const visible = (e) => e.checkVisibility({ visibilityProperty: true }) && e.closest(".visually-hidden") === null;
  const open = document.querySelector("dialog[open]");
  const root = open ?? document.body;
  const found = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node !== null; node = walker.nextNode()) {
    const element = node.parentElement;
    if (node.data.trim() === "" || !visible(element) || element.closest("noscript") !== null) continue;
    const color = parse(getComputedStyle(element).color);
    found.push({ text: node.data.trim().slice(0, 40), ratio: ratio(color, ground(element)), least: 4.5 });
  }
  for (const field of root.querySelectorAll("input")) {
    const color = parse(getComputedStyle(field).color);
    if (visible(field)) found.push({ text: field.value, ratio: ratio(color, ground(field)), least: 4.5 });
  }
  // edges without which a control could not be seen
  const edged = ".secondary, .place, progress, input, .zoom-tab, .primary[aria-disabled=true]";
  for (const control of [...root.querySelectorAll(edged)].filter(visible)) {
    const edge = ratio(parse(getComputedStyle(control).borderTopColor), ground(control.parentElement));
    found.push({ text: `edge of ${control.className || control.tagName}`, ratio: edge, least: 3 });
  }
  return found;
}
"""

_STRUCTURE = """
() => {
  const faults = [];
  const shown = (e) => e.checkVisibility({ visibilityProperty: true });
  const root = document.querySelector("dialog[open]") ?? document.body;
  for (const image of document.querySelectorAll("img")) {
    if (!image.hasAttribute("alt")) faults.push(`no alt: ${image.src}`);
    if (image.alt === "" && image.closest("[aria-hidden=true]") === null) faults.push(`empty alt: ${image.src}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push(`id twice: ${id}`);
  for (const e of document.querySelectorAll("[aria-labelledby]")) {
    if (!ids.includes(e.getAttribute("aria-labelledby"))) faults.push(`labelled by nothing: ${e.className}`);
  }
  if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) faults.push("not one main");
  if (document.documentElement.lang === "") faults.push("no language");
  const levels = [...root.querySelectorAll("h1, h2, h3")].filter(shown).map((e) => Number(e.tagName[1]));
  levels.forEach((level, i) => {
    if (i > 0 && level > levels[i - 1] + 1) faults.push(`heading ${level} after ${levels[i - 1]}`);
  });
  for (const e of document.querySelectorAll("[tabindex]")) if (e.tabIndex > 0) faults.push(`tabindex ${e.tabIndex}`);
  return faults;
}
"""

_SMALL_TARGETS = """
() => [...(document.querySelector("dialog[open]") ?? document.body).querySelectorAll("button, a, input")]
  .filter((e) => e.checkVisibility())
  .map((e) => ({ name: e.getAttribute("aria-label") || e.innerText, box: e.getBoundingClientRect() }))
  .filter(({ box }) => Math.round(box.width) < 44 || Math.round(box.height) < 44)
  .map(({ name, box }) => `${name}: ${box.width} x ${box.height}`)
"""

_OVERFLOW = """
() => [...document.querySelectorAll("body *")]
  .filter((e) => e.checkVisibility() && e.closest(".visually-hidden, .zoom-stage") === null)
  .filter((e) => Math.ceil(e.getBoundingClientRect().right) > innerWidth + 1)
  .map((e) => `${e.tagName} ${e.className}: ${e.getBoundingClientRect().right}`)
  .concat(document.documentElement.scrollWidth > innerWidth ? [`page ${document.documentElement.scrollWidth}`] : [])
"""

_FOCUSED = """
() => {
  const e = document.activeElement;
  const style = getComputedStyle(e);
  const box = e.getBoundingClientRect();
  const centre = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return {
    index: [...document.querySelectorAll("*")].indexOf(e),
    name: e.getAttribute("aria-label") || e.innerText || e.value || e.tagName,
    ring: style.outlineStyle === "solid" ? Number.parseFloat(style.outlineWidth) : 0,
    seen: centre !== null && (e.contains(centre) || (e.closest(".place") ?? centre) === centre.closest(".place")),
  };
}
"""

ROLES = {"button", "link", "textbox", "progressbar", "dialog", "list", "image", "group", "navigation", "complementary"}


def assert_accessible(page):
    """Names, alternatives, structure and contrast of what is shown now."""
    assert page.evaluate(_STRUCTURE) == []
    found = page.evaluate(_CONTRAST)
    assert len(found) >= 2
    assert [entry for entry in found if entry["ratio"] < entry["least"]] == []
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    named = [node for node in nodes if not node["ignored"] and node["role"]["value"] in ROLES]
    nameless = [
        node
        for node in named
        if not node.get("name", {}).get("value", "").strip() and node["role"]["value"] not in ("list", "group")
    ]
    assert nameless == []
    session.detach()


def assert_fits(page):
    """Nothing has to be scrolled sideways."""
    assert page.evaluate(_OVERFLOW) == []


def assert_touchable(page):
    """Everything to press is at least 44 px wide and high."""
    assert page.evaluate(_SMALL_TARGETS) == []


def tab_through(page, most=60):
    """Names of what the Tab key reaches; each shows its focus, is in sight and follows the order of the page."""
    names, last = [], -1
    for _ in range(most):
        page.keyboard.press("Tab")
        focused = page.evaluate(_FOCUSED)
        if focused["index"] <= last:  # past the end and around
            return names
        assert focused["ring"] >= 2, f"{focused['name']} shows no focus"
        assert focused["seen"], f"{focused['name']} is hidden while it has the focus"
        names.append(focused["name"].strip())
        last = focused["index"]
    raise AssertionError(f"no end after {most} stops")
