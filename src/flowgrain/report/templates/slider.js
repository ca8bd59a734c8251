"use strict";
(() => {
  const slider = document.getElementById("slider");
  const one = (query) => slider.querySelector(query);
  const pick = { row: one("[data-pick=row]"), first: one("[data-pick=first]"), second: one("[data-pick=second]") };
  const stage = one(".stage");
  const range = one("input");
  const status = one("[data-status]");
  const sides = ["first", "second"];

  // the pictures are in the grids of the page, each once; the slider shows what it finds there
  const picture = (column) =>
    document.querySelector(`img[data-rows~="${pick.row.value}"][data-column="${column}"]`);
  const title = (side) => pick[side].selectedOptions[0].textContent;

  function cut() {
    stage.style.setProperty("--cut", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${title("first")}, ${100 - range.value} % ${title("second")}`);
  }

  function show() {
    const absent = [];
    for (const side of sides) {
      for (const option of pick[side].options) option.disabled = !picture(option.value);
      const source = picture(pick[side].value);
      const target = one(`[data-side=${side}]`);
      target.hidden = !source;
      if (source) {
        target.src = source.src;
        target.alt = source.alt;
        stage.style.setProperty("--ratio", `${source.getAttribute("width")} / ${source.getAttribute("height")}`);
      } else {
        target.removeAttribute("src");
        absent.push(title(side));
      }
      one(`[data-name=${side}]`).textContent = title(side);
    }
    status.textContent = absent.length ? `No picture of ${absent.join(" and ")} for this prompt.` : "";
    for (const button of slider.querySelectorAll("[data-step]")) {
      const target = pick.row.selectedIndex + Number(button.dataset.step);
      button.disabled = target < 0 || target >= pick.row.options.length;
    }
    cut();
  }

  function follow(event) {
    const box = stage.getBoundingClientRect();
    range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    cut();
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  range.addEventListener("input", cut);
  for (const select of Object.values(pick)) select.addEventListener("change", show);
  for (const button of slider.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => {
      pick.row.selectedIndex += Number(button.dataset.step);
      show();
    });
  }
  one("[data-swap]").addEventListener("click", () => {
    [pick.first.value, pick.second.value] = [pick.second.value, pick.first.value];
    show();
  });
  for (const button of document.querySelectorAll("[data-open]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      pick.row.value = button.dataset.open;
      show();
      slider.scrollIntoView();
      range.focus({ preventScroll: true });
    });
  }
  for (const part of [one(".controls"), stage, range]) part.hidden = false;
  show();
})();
