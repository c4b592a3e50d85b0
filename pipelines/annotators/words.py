"""Words that the gates know: the little words of some languages, and names that mean the same kind of thing."""

# ruff: noqa: E501 - lists of words read better in full lines
from __future__ import annotations

FUNCTION_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "English": "a an the this that these those it its is are was be been being and or but not no nor now then than as of"
        " in on at to from by for with without into onto over under above below between behind beside near around across"
        " against through during before after up down out off away more less most very same other another one some any all"
        " there here where when while which who what i you we they he she me him her us them my your our their his so too"
        " only just still again instead rather has have had do does should would will can could may show see",
        "German": "der die das den dem des ein eine einen einem einer und oder aber nicht kein keine ist sind war im am zum zur"
        " auf aus bei mit nach von vor zu durch für gegen ohne um über unter zwischen hinter neben als wie wenn noch nur"
        " auch jetzt hier dort mehr sehr es sie er ihr sein wird werden zeige",
        "French": "le la les un une des du de et ou mais ne pas est sont était dans sur sous avec sans pour par chez vers entre"
        " derrière devant plus moins très ce cet cette ces il elle on nous vous qui que où au aux en maintenant même",
        "Spanish": "el la los las un una unos unas y o pero no es son era en de del al con sin por para sobre bajo entre detrás"
        " delante más menos muy este esta estos estas ese esa que donde ahora mismo lo se su",
        "Italian": "il lo la i gli le un uno una e o ma non è sono era in di del della dei delle al alla con senza per su sul"
        " sulla sotto tra fra dietro davanti più meno molto questo questa che dove ora stesso si nel nella",
        "Portuguese": "o a os as um uma uns umas e ou mas não é são era em no na nos nas de do da dos das ao com sem por para"
        " sobre sob entre atrás mais menos muito este esta isto que onde agora mesmo",
        "Dutch": "de het een en of maar niet geen is zijn was in op aan bij met naar van voor door over onder tussen achter naast"
        " als dan nog ook nu hier daar meer zeer dit dat deze die er te",
    }.items()
}
"""Language → words that nearly every sentence of it has some of. Words that two share count for both."""

FILLERS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "it",
        "its",
        "is",
        "are",
        "was",
        "be",
        "being",
        "and",
        "but",
        "now",
        "then",
        "as",
        "of",
        "in",
        "on",
        "at",
        "to",
        "from",
        "by",
        "for",
        "with",
        "i",
        "we",
        "you",
        "me",
        "my",
        "would",
        "like",
        "want",
        "see",
        "show",
        "please",
        "again",
        "same",
        "one",
    ]
)
"""English words that make no difference between two requests. Those of place are none: on the table, under it."""

KINDS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split(", "))
    for names in (
        "garment, clothing, clothes, apparel, attire, outfit, clothing item, article of clothing",
        "shirt, t-shirt, tee, blouse, top, tank top, polo shirt, long sleeve top, short sleeve top, vest, sling, jersey",
        "jacket, coat, outwear, outerwear, parka, blazer, long sleeve outwear, short sleeve outwear",
        "sweater, pullover, jumper, hoodie, sweatshirt, cardigan",
        "trousers, pants, jeans, slacks, leggings",
        "shorts, bermudas",
        "dress, gown, frock, long sleeve dress, short sleeve dress, vest dress, sling dress",
        "skirt, miniskirt",
        "shoe, sneaker, trainer, boot, sandal, slipper, footwear",
        "hat, cap, beanie",
        "glasses, sunglasses, spectacles, eyewear",
        "backpack, rucksack, knapsack, daypack",
        "bag, handbag, purse, tote, satchel",
        "car, vehicle, automobile, sedan, hatchback, coupe, convertible, suv, wagon, minivan, van, pickup, truck",
        "building, structure, tower, house, edifice",
        "landmark, monument, sight, memorial",
        "church, cathedral, chapel, basilica",
        "castle, fortress, palace",
        "bridge, viaduct",
        "product, item, article, merchandise",
        "mug, cup, tumbler, beaker",
        "bottle, flask",
        "can, tin",
        "box, carton, package, packet",
        "teapot, kettle",
        "bowl, dish",
        "vase, pot, jug, pitcher",
        "toy, plush, plushie, stuffed animal, soft toy, doll, figurine",
        "teddy, teddy bear",
        "dog, puppy, hound",
        "cat, kitten, kitty",
        "phone, smartphone, mobile phone, cell phone",
        "clock, alarm clock",
        "watch, wristwatch, smartwatch",
        "laptop, notebook, computer",
        "headphones, headset, earphones, earbuds",
        "chair, stool, armchair, seat",
        "sofa, couch, settee",
        "bicycle, bike",
        "motorbike, motorcycle, scooter",
        "candle, tealight",
        "book, volume, paperback",
        "shampoo, conditioner",
        "cream, lotion, ointment",
        "perfume, fragrance, cologne",
        "lipstick, lip gloss, lip balm",
        "snack, crisps, chips, biscuit, cookie, cracker",
        "soap, detergent",
        "milk, dairy drink",
        "juice, smoothie",
        "robot, robot toy, action figure",
    )
)
"""Names that a reader takes for the same kind of thing; a text that may not say one may say none of them."""

PLACES_TOO = frozenset({"top", "can", "seat", "sight", "volume", "box", "watch", "cap", "see", "pot", "dish"})
"""Of these words, those that say where or how, too ("at the top", "it can"): banned only where they are the category
itself or stand in a longer name."""
