"""Which things the bundle knows, what they are called in captions, and which of them are held out.

A *concept* is a kebab-case emoji name ("red-apple"). The base model trains on the concepts below in three drawing
styles; every tenth concept is held out from all training, in all styles, so that validation never meets a known thing.
"""

from __future__ import annotations

import hashlib

STYLES = {"noto": "noto style", "twemoji": "twemoji style", "flat": "flat style"}
BASE_CATEGORIES = ("Animals & Nature", "Food & Drink")

# Left out: near-duplicates of another concept, bundles of small things, and drawings hard to tell apart at 128 px.
DROPPED = frozenset(
    """front-facing-baby-chick guide-dog service-dog wilted-flower empty-nest leaf-fluttering-in-wind microbe hyacinth
    herb shamrock rosette worm fly cockroach ox ewe ram water-buffalo orangutan chipmunk white-flower blossom paw-prints
    black-cat wing spider-web sheaf-of-rice oden fondue falafel stuffed-flatbread flatbread tamale bento-box
    brown-mushroom canned-food chopsticks clinking-glasses cooking curry-rice custard fish-cake-with-swirl
    fork-and-knife fork-and-knife-with-plate dango ice jar leafy-green mate moon-cake pea-pod pouring-liquid
    rice-cracker sake salt steaming-bowl takeout-box teacup-without-handle tumbler-glass bowl-with-spoon
    roasted-sweet-potato beans dumpling ginger-root green-salad shaved-ice shallow-pan-of-food amphora cut-of-meat
    olive chestnut fortune-cookie""".split()
)

OBJECTS = tuple(
    """accordion axe backpack ballet-shoes banjo basket bathtub battery bed bell billed-cap bomb books boomerang
    bow-and-arrow briefcase broom bucket camera candle chair coin couch-and-lamp crown desktop-computer door dress drum
    fire-extinguisher flashlight gear gem-stone glasses gloves guitar hammer handbag headphone high-heeled-shoe
    hiking-boot jeans key ladder laptop light-bulb lipstick locked magnet magnifying-glass-tilted-left megaphone
    microscope mobile-phone money-bag necktie open-book package paintbrush pencil pill plunger postbox radio
    red-paper-lantern ring running-shoe saxophone scarf scissors screwdriver shield shopping-cart socks sunglasses
    t-shirt telephone telescope television toilet top-hat trumpet violin wrench
    american-football artist-palette balloon baseball basketball bowling boxing-glove bullseye christmas-tree
    crystal-ball game-die jack-o-lantern kite pool-8-ball soccer-ball teddy-bear tennis trophy volleyball wrapped-gift
    yarn airplane alarm-clock ambulance anchor automobile bicycle bus canoe castle church circus-tent cloud compass
    crescent-moon delivery-truck fire fire-engine full-moon fuel-pump globe-showing-americas helicopter hourglass-done
    house locomotive motor-scooter mountain parachute rainbow ringed-planet rocket sailboat snowflake snowman star
    stop-sign sun taxi tent tornado tractor umbrella volcano watch wheel flying-saucer skateboard""".split()
)

SPOKEN = {
    "locked": "padlock",
    "magnifying-glass-tilted-left": "magnifying glass",
    "globe-showing-americas": "globe",
    "hourglass-done": "hourglass",
    "automobile": "red car",
    "tennis": "tennis ball",
    "bowling": "bowling ball",
    "game-die": "die",
    "package": "cardboard box",
    "billed-cap": "cap",
    "headphone": "headphones",
    "bullseye": "target",
    "pool-8-ball": "eight ball",
    "jack-o-lantern": "halloween pumpkin",
    "yarn": "ball of yarn",
    "two-hump-camel": "two-hump camel",
    "lady-beetle": "ladybug",
    "t-rex": "tyrannosaurus",
    "t-shirt": "t-shirt",
    "hot-beverage": "cup of coffee",
    "beverage-box": "juice box",
    "bread": "loaf of bread",
    "cooked-rice": "bowl of rice",
    "glass-of-milk": "glass of milk",
    "rice-ball": "rice ball",
    "pot-of-food": "pot of stew",
    "wheel": "car wheel",
    "fire": "flame",
    "cricket": "cricket insect",
    "mouse": "mouse animal",
    "soft-ice-cream": "ice cream cone",
    "ice-cream": "bowl of ice cream",
    "clinking-beer-mugs": "pair of beer mugs",
    "ear-of-corn": "ear of corn",
    "spiral-shell": "sea shell",
    "lotus": "lotus flower",
    "locomotive": "steam train",
    "coral": "coral reef",
}
NO_ARTICLE = frozenset("""bacon broccoli butter garlic popcorn spaghetti sushi candy""".split())


def spoken(concept: str) -> str:
    """The words for a concept in a caption, without an article."""
    return SPOKEN.get(concept, concept.replace("-", " "))


def with_article(concept: str) -> str:
    """The words for a concept with "a" or "an" where English wants one."""
    words = spoken(concept)
    plural = (
        words.endswith("s") and not words.endswith(("ss", "us", "os")) and " with " not in words and " of " not in words
    )
    if plural or concept in NO_ARTICLE:
        return words
    vowel = words[0] in "aeio" or words.startswith(("umbrella", "hourglass"))
    return f"{'an' if vowel else 'a'} {words}"


def caption(concept: str, style: str, closeness: str = "") -> str:
    """A caption, e.g. "extreme close-up of a red apple, noto style" for closeness "extreme close-up"."""
    subject = with_article(concept)
    return f"{closeness} of {subject}, {style}" if closeness else f"{subject}, {style}"


def rank(concept: str) -> str:
    """A fixed pseudo-random order of concepts, the same on every machine and in every set."""
    return hashlib.sha256(f"flowgrain:{concept}".encode()).hexdigest()


def is_held_out(concept: str) -> bool:
    """True for about every tenth concept: never seen in the training of the autoencoder, the text encoders or FLUX."""
    return int(rank(concept), 16) % 10 == 0
