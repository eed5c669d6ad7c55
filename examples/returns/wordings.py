"""The words that the templates are filled with, kept apart by split so that held-out rows say things differently.

Each bank maps a fact's value to clauses. A clause starts in lower case ("it is still sealed"); templates turn it
into a sentence where they need one. Goods, countries and numbers are the same words in every split.
"""

from __future__ import annotations

from itertools import product

ITEMS: dict[str, tuple[str, ...]] = {
    "electronics": (
        "a laptop", "a smartphone", "a tablet", "a bluetooth speaker", "a smartwatch", "a digital camera",
        "a computer monitor", "a wireless keyboard", "a computer mouse", "a wifi router", "a printer",
        "an external hard drive", "a games console", "an e-reader", "a drone", "a television", "a power bank",
        "a webcam", "a USB charger", "a graphics card", "a microphone", "a projector", "a pair of headphones",
        "a set of earbuds", "a hair dryer", "an electric kettle", "a toaster", "a blender",
        "a vacuum cleaner",
        "a coffee machine", "a soundbar", "a phone", "a fitness tracker", "a microwave", "a radio",
    ),
    "clothing": (
        "a jacket", "a jumper", "a summer dress", "a pair of jeans", "a T-shirt", "a raincoat", "a skirt",
        "a hoodie",
        "a wool scarf", "a suit", "a shirt", "a winter coat", "a blouse", "a cardigan", "a pair of trousers",
        "a polo shirt", "a waistcoat", "a pair of gloves", "a sweater", "a pair of shorts", "a tracksuit",
        "a parka",
        "a cap", "a fleece", "a kimono",
    ),
    "shoes": (
        "a pair of trainers", "a pair of boots", "a pair of sandals", "a pair of hiking boots",
        "a pair of high heels",
        "a pair of loafers", "a pair of running shoes", "a pair of slippers", "a pair of sneakers",
        "a pair of football boots", "a pair of ballet flats", "a pair of rubber boots",
        "a pair of leather shoes",
        "a pair of clogs", "a pair of flip-flops", "a pair of pumps",
    ),
    "underwear": (
        "a pack of boxer shorts", "a bra", "a pack of briefs", "a set of lingerie", "a thong",
        "a pair of long johns",
        "a pair of underpants", "a sports bra", "a three-pack of knickers", "a pair of boxers",
        "a set of underwear",
        "a pair of panties", "a corset", "a pack of underpants", "an undershirt",
    ),
    "cosmetics": (
        "a lipstick", "a face cream", "a mascara", "a bottle of perfume", "a shampoo", "a liquid foundation",
        "a nail polish", "a sunscreen", "an eyeshadow palette", "a body lotion", "a face serum",
        "a makeup kit",
        "a hand cream", "an eyeliner", "a lip balm", "a hair dye", "a bottle of aftershave", "a deodorant",
        "a concealer", "a face mask", "a shower gel",
    ),
    "food": (
        "a box of chocolates", "a bag of coffee beans", "a jar of honey", "a tin of biscuits",
        "a bottle of olive oil",
        "a cheese hamper", "a tub of protein powder", "a box of tea", "a bag of pasta", "a jar of jam",
        "a bottle of wine", "a pack of dried fruit", "a salami", "a bag of nuts", "a fruit cake",
        "a pack of cereal",
        "a bottle of syrup", "a jar of peanut butter", "a spice set", "a bag of rice",
    ),
    "furniture": (
        "an armchair", "a desk", "a bookcase", "a sofa", "a bed frame", "a dining table", "a wardrobe",
        "a chest of drawers", "a nightstand", "a bar stool", "a coffee table", "a shelf", "an office chair",
        "a kitchen table", "a garden bench", "a TV stand", "a cupboard", "a footstool", "a bunk bed",
        "a sideboard",
    ),
    "books": (
        "a novel", "a cookbook", "a textbook", "an atlas", "a dictionary", "a comic book", "a travel guide",
        "a biography", "a children's book", "a poetry collection", "a thriller", "a grammar book",
        "a paperback",
        "a hardcover", "a history book", "a detective story", "a photo book", "a crime novel",
        "an encyclopedia",
    ),
    "toys": (
        "a board game", "a jigsaw puzzle", "a teddy bear", "a building set", "a doll", "a toy train",
        "a kite",
        "a toy car", "a set of wooden blocks", "a plush rabbit", "a card game", "a dollhouse", "a puppet",
        "a toy kitchen", "a rocking horse", "a marble run", "a toy castle", "a spinning top",
        "an action figure",
    ),
    "gift card": (
        "a gift card", "a gift voucher", "a store gift card", "an e-gift card", "a 50 euro gift card",
        "a digital gift card", "a 25 euro gift voucher", "a gift certificate", "a gift card for your shop",
    ),
}  # fmt: skip

EU_NAMES: dict[str, str] = {
    "Austria": "AT", "Belgium": "BE", "Bulgaria": "BG", "Croatia": "HR", "Cyprus": "CY", "Czechia": "CZ",
    "Denmark": "DK", "Estonia": "EE", "Finland": "FI", "France": "FR", "Germany": "DE", "Greece": "GR",
    "Hungary": "HU", "Ireland": "IE", "Italy": "IT", "Latvia": "LV", "Lithuania": "LT", "Luxembourg": "LU",
    "Malta": "MT", "Netherlands": "NL", "Poland": "PL", "Portugal": "PT", "Romania": "RO", "Slovakia": "SK",
    "Slovenia": "SI", "Spain": "ES", "Sweden": "SE",
}  # fmt: skip
ABROAD_NAMES: dict[str, str] = {
    "Switzerland": "CH", "Norway": "NO", "United Kingdom": "GB", "United States": "US", "Canada": "CA",
    "Australia": "AU", "Japan": "JP", "Brazil": "BR", "Turkey": "TR", "Ukraine": "UA", "Serbia": "RS",
    "Iceland": "IS", "Mexico": "MX", "India": "IN", "China": "CN", "South Korea": "KR", "New Zealand": "NZ",
    "Israel": "IL", "South Africa": "ZA", "Argentina": "AR", "Singapore": "SG", "Albania": "AL",
    "Georgia": "GE",
    "Morocco": "MA", "Egypt": "EG", "Chile": "CL", "Thailand": "TH", "Bosnia": "BA", "Moldova": "MD",
    "United Arab Emirates": "AE",
}  # fmt: skip
COUNTRY_CODES: dict[str, str] = {**EU_NAMES, **ABROAD_NAMES}
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "Netherlands": ("the Netherlands", "the Netherlands", "Holland"),
    "Czechia": ("Czechia", "the Czech Republic"),
    "Ireland": ("Ireland", "the Republic of Ireland"),
    "United Kingdom": ("the United Kingdom", "the UK", "Great Britain", "England", "Scotland"),
    "United States": ("the United States", "the USA", "the US", "the States"),
    "United Arab Emirates": ("the United Arab Emirates", "the UAE"),
}

CITIES: dict[str, tuple[str, ...]] = {
    "Austria": ("Innsbruck", "Klagenfurt"), "Belgium": ("Bruges", "Namur"), "Bulgaria": ("Varna", "Plovdiv"),
    "Croatia": ("Rijeka", "Zadar"), "Cyprus": ("Limassol", "Paphos"), "Czechia": ("Plzen", "Olomouc"),
    "Denmark": ("Esbjerg", "Roskilde"), "Estonia": ("Narva", "Parnu"), "Finland": ("Tampere", "Espoo"),
    "France": ("Marseille", "Rennes", "Strasbourg"), "Germany": ("Frankfurt", "Leverkusen", "Rostock"),
    "Greece": ("Volos", "Rhodes"), "Hungary": ("Pecs", "Gyor"), "Ireland": ("Waterford", "Sligo"),
    "Italy": ("Florence", "Genoa", "Palermo"), "Latvia": ("Liepaja", "Ventspils"), "Lithuania": ("Klaipeda",),
    "Luxembourg": ("Esch",), "Malta": ("Sliema", "Mosta"), "Netherlands": ("Amsterdam", "Groningen", "Delft"),
    "Poland": ("Wroclaw", "Szczecin"), "Portugal": ("Braga", "Aveiro"), "Romania": ("Timisoara", "Iasi"),
    "Slovakia": ("Nitra", "Zilina"), "Slovenia": ("Celje", "Kranj"), "Spain": ("Barcelona", "Zaragoza", "Murcia"),
    "Sweden": ("Stockholm", "Umea"), "Switzerland": ("Geneva", "Bern"), "Norway": ("Oslo", "Trondheim"),
    "United Kingdom": ("London", "Manchester", "Glasgow"), "United States": ("New York", "Denver", "Miami"),
    "Canada": ("Montreal", "Calgary"), "Australia": ("Sydney", "Melbourne"), "Japan": ("Tokyo", "Kyoto"),
    "Brazil": ("Sao Paulo", "Curitiba"), "Turkey": ("Istanbul", "Ankara"), "Ukraine": ("Kyiv", "Odesa"),
    "Serbia": ("Belgrade", "Nis"), "Iceland": ("Akureyri",), "Mexico": ("Monterrey", "Cancun"),
    "India": ("Mumbai", "Delhi"), "China": ("Shanghai", "Beijing"), "South Korea": ("Seoul", "Busan"),
    "New Zealand": ("Auckland",), "Israel": ("Haifa",), "South Africa": ("Durban",), "Argentina": ("Rosario",),
    "Albania": ("Tirana",), "Morocco": ("Rabat",), "Egypt": ("Cairo",), "Chile": ("Valparaiso",),
    "Thailand": ("Bangkok",), "Bosnia": ("Sarajevo",), "Moldova": ("Chisinau",), "United Arab Emirates": ("Dubai",),
}  # fmt: skip


def joined(*parts: tuple[str, ...]) -> tuple[str, ...]:
    """Every way to say one of each part after the other: a few parts make many clauses."""
    return tuple(" ".join(words) for words in product(*parts))


RECEIPT: dict[str, dict[bool, tuple[str, ...]]] = {
    "train": {
        True: (
            "I have the receipt", "I still have the receipt", "I kept the receipt", "the receipt is attached",
            "I've got the receipt here", "I can show the receipt", "I have the original receipt",
            "the receipt is in the box", "I have proof of purchase", "I saved the receipt",
            "my receipt is at hand",
            "I am attaching a photo of the receipt", "I do have a receipt", "yes, I have the receipt",
            "the till receipt is still here", "I have the invoice", "the invoice is enclosed",
            "I found the receipt in my bag", "I can send you the receipt", "I have not lost the receipt",
            "a copy of the receipt is attached", "luckily I kept the receipt", "receipt is available",
            "the sales slip is with me", "I hold on to all my receipts, this one too",
            "I'm holding the receipt",
            "I have the bill", "you will find the receipt enclosed", "the purchase receipt is in my inbox",
            *joined(("I have", "I still have", "I kept", "I did keep", "I can give you", "I've got",
                     "of course I have"),
                    ("the receipt", "a receipt", "the invoice", "the bill", "the till slip", "proof of purchase",
                     "my receipt")),
            *joined(("the receipt", "the invoice", "the bill", "the slip from the till", "the paper receipt"),
                    ("is here with me", "is still there", "is on my table", "is included", "can be shown",
                     "is in good order", "has been kept", "is in my folder")),
            *joined(("receipt:", "proof of purchase:", "receipt?"), ("yes", "available", "here", "I have it")),
        ),
        False: (
            "I don't have the receipt", "I lost the receipt", "I no longer have the receipt",
            "there is no receipt",
            "I threw the receipt away", "I can't find the receipt", "the receipt is gone",
            "I have no receipt",
            "I do not have any proof of purchase", "I never got a receipt", "the receipt got lost",
            "unfortunately the receipt is missing", "I misplaced the receipt", "I did not keep the receipt",
            "sadly I have no receipt any more", "the receipt went in the bin", "I am without a receipt",
            "I cannot provide a receipt", "I have no invoice", "I lost the invoice", "no receipt though",
            "the receipt has disappeared", "I came without the receipt", "I haven't got the bill any more",
            "I looked everywhere but the receipt is not there", "my dog ate the receipt",
            "the sales slip is lost",
            "I can not show a receipt", "I don't have the receipt anymore",
            *joined(("I don't have", "I no longer have", "I did not keep", "I lost", "I can't find",
                     "I cannot give you",
                     "I never had", "I haven't got", "I threw away", "I deleted", "we have lost"),
                    ("the receipt", "a receipt", "the invoice", "the bill", "the till slip", "my receipt")),
            *joined(("the receipt", "the invoice", "the bill", "the slip from the till", "the paper receipt"),
                    ("is lost", "is gone", "is missing", "was thrown away", "cannot be found", "got destroyed",
                     "is not here any more", "was never given to me", "has not turned up", "is nowhere")),
            *joined(("receipt:", "proof of purchase:", "receipt?"), ("no", "none", "lost", "not available", "gone")),
        ),
    },
    "dev": {
        True: ("the receipt is right here", "I can prove the purchase with the receipt",
               "the receipt I do have",
               "I kept hold of the till slip", "I've put the receipt aside for you",
               "the bill is attached to this message"),
        False: ("the receipt I have lost", "no idea where the receipt went",
                "I must have thrown out the receipt",
                "I have nothing to prove the purchase", "the receipt was not in the bag",
                "I'm missing the invoice"),
    },
    "heldout": {
        True: (
            "the receipt is safely in my wallet", "I can present the receipt any time",
            "the proof of purchase is with me",
            "I took good care of the receipt", "a scan of the invoice comes with this message",
            "I happen to have the receipt", "the receipt lies in front of me",
            "I put the receipt in the parcel",
            "I printed the receipt",
        ),
        False: (
            "the receipt is nowhere to be found", "I must have lost the receipt",
            "I seem to have thrown out the bill",
            "I am afraid I can't produce the receipt", "nobody gave me a receipt",
            "the receipt ended up in the trash",
            "I've got no proof that I bought it", "the invoice vanished", "I'm missing the receipt",
        ),
    },
}  # fmt: skip

RECEIPT_THIRD: dict[str, dict[bool, tuple[str, ...]]] = {
    "train": {
        True: ("the customer has the receipt", "receipt is available", "the receipt was shown",
               "she kept the receipt",
               "he has the receipt", "the buyer can show a receipt", "with a receipt",
               "they sent us the receipt",
               "proof of purchase was provided", "the client still has the invoice",
               "a receipt was presented"),
        False: ("the customer has no receipt", "no receipt is available", "the receipt was lost",
                "she lost the receipt",
                "he has no receipt", "the buyer cannot show a receipt", "without a receipt",
                "they could not send us a receipt", "no proof of purchase was provided",
                "the client no longer has the invoice", "a receipt could not be presented"),
    },
    "dev": {
        True: ("the receipt is on file", "the caller owns the receipt", "the receipt came with it"),
        False: ("the receipt is not on file", "the caller lost the bill", "the receipt did not come with it"),
    },
    "heldout": {
        True: ("the shopper brought the receipt along", "the receipt has been handed in",
               "there is a valid receipt",
               "the person kept the bill"),
        False: ("the shopper came without any receipt", "the receipt has gone missing",
                "there is no valid receipt",
                "the person did not keep the bill"),
    },
}  # fmt: skip

CONDITION: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "train": {
        "unopened": {
            "any": (
                "it is still sealed", "it is unopened", "I have not opened it", "the box is still sealed",
                "it's in the original sealed packaging", "I never opened the package", "the seal is intact",
                "it has not been opened", "it is brand new and unopened", "the packaging was never opened",
                "it is still in its unopened box", "I left it sealed", "nobody has opened it",
                "it's factory sealed",
                "the wrapping is still untouched", "I didn't even open it", "the seal has not been broken",
                "it is still closed as delivered", "the parcel is still unopened", "it's unopened",
                *joined(("the box", "the package", "the packaging", "the wrapping", "the film", "the bag", "the lid",
                         "the label on the seal"),
                        ("is still closed", "has never been opened", "remains sealed", "is unbroken", "is intact",
                         "is untouched", "is as new, not opened", "was not opened by anyone")),
                *joined(("it is", "it's still", "it was left", "I kept it", "it remains"),
                        ("sealed", "unopened", "in its closed box", "wrapped as it came", "shut tight",
                         "in the sealed bag", "in unopened packaging", "in the wrapper, never opened")),
                *joined(("I never", "I did not", "nobody has", "we never"),
                        ("opened the box", "opened it", "broke the seal", "unpacked it", "took it out of the box",
                         "removed the wrapping", "cut the tape")),
            ),
        },
        "opened": {
            "any": (
                "I opened it but have not used it", "it is opened but unused",
                "the box is open but it was never used",
                "I opened the package and nothing more", "it was opened, not used",
                "the seal is broken but it is unused",
                "I only opened the box", "it has been opened but never used",
                "I unpacked it but did not use it",
                "I just took it out of the box to look at it", "it's out of the packaging but unused",
                "I opened it to have a look", "the packaging has been opened, it is otherwise new",
                "it is unpacked and unused", "I broke the seal but never used it", "I opened it once, no use",
                "it's been opened", "I removed the wrapping but did not use it", "the package is open",
                *joined(("I opened it", "I opened the box", "I unpacked it", "I took it out of the box",
                         "I unwrapped it",
                         "I took off the wrapping", "I broke the seal", "we opened the package", "I cut the tape"),
                        ("but never used it", "and put it back unused", "only to look at it", "but did not use it",
                         "to check the size, no more", "and that is all", "without using it", "for a short look")),
                *joined(("the box", "the package", "the packaging", "the seal", "the wrapping"),
                        ("is open but it is unused", "was opened, nothing else", "is open, never used",
                         "has been opened once", "is off, it is like new", "is no longer closed, but it is unused")),
            ),
            "clothing": ("I only tried it on", "I tried it on once at home, never wore it",
                         "the bag is open, never worn"),
            "shoes": ("I only tried them on indoors", "they were tried on, never worn outside"),
            "books": ("I removed the foil but did not read it", "the foil is off, unread"),
            "furniture": ("I opened the box but did not assemble it", "it is unpacked but not assembled"),
            "toys": ("the box was opened but nobody has played with it",),
        },
        "used": {
            "any": (
                "I have used it", "it has been used", "I used it a few times", "it shows signs of use",
                "it is used",
                "I've been using it every day", "it was used several times", "I used it once",
                "it's been in use",
                "I used it for a while", "there are signs of wear", "it is no longer new, I used it",
                "it has been used regularly", "I already used it", "it was used for a few days",
                "we used it a lot",
                "it has some wear from use", "it is scratched from use",
                *joined(("I used it", "we used it", "it was used", "I have been using it", "it has been in use"),
                        ("every day", "for a week", "at home", "twice", "once or twice", "for some days",
                         "quite often", "on a trip", "at work", "until last night", "over the weekend",
                         "all the time")),
            ),
            "clothing": ("I wore it twice", "it has been worn and washed", "I have worn it", "I wear it all the time",
                         "I wore it for a day", "it was worn to work",
                         "I wore it to a party"),
            "shoes": ("I wore them outside", "they have been worn", "the soles are worn", "I went running in them",
                      "I have worn them to work",
                      "I walked in them for a week"),
            "underwear": ("I wore it once", "it has been worn"),
            "cosmetics": ("I used half of it", "it is half empty", "I put some of it on my skin",
                          "I tried it on my face",
                          "I applied it a few times"),
            "food": ("we ate some of it", "it is half eaten", "I tasted it", "we finished half of it", "I had a bite",
                     "we tried a little of it"),
            "furniture": ("it is assembled and in use", "we have used it in the living room",
                          "we put it together and use it"),
            "books": ("I have read it", "I read it and made notes in it", "it was read twice", "I read half of it",
                      "I read it to the last page"),
            "toys": ("the kids have played with it", "my son plays with it every day", "we played with it for a week"),
        },
        "defective": {
            "any": (
                "it arrived broken", "it is defective", "it came damaged", "it is faulty",
                "it was broken on arrival",
                "it arrived damaged", "it has a defect", "it was damaged when I opened the parcel",
                "it is broken",
                "it was delivered in a damaged state", "there is a manufacturing fault",
                "it was faulty from the start",
                "it reached me damaged", "a part is missing and another is broken",
                "it turned out to be defective",
                "it has a production defect", "it came with a fault", "something inside is broken",
                *joined(("it arrived", "it came", "it was delivered", "you sent it", "it reached us", "it is"),
                        ("broken", "damaged", "in pieces", "cracked", "defective", "with a defect", "faulty",
                         "with a broken part")),
                *joined(("there is", "it has", "it came with", "we found"),
                        ("a defect", "a crack from the factory", "a production fault", "a broken part", "damage",
                         "a flaw that was there from the start")),
            ),
            "electronics": ("it does not turn on", "it stopped working", "it is dead on arrival",
                            "the screen is cracked",
                            "it doesn't work", "it won't charge", "it broke by itself",
                            *joined(("the motor", "the battery", "the power button", "the display", "the cable"),
                                    ("is dead", "does not work", "failed", "is faulty", "broke without reason"))),
            "clothing": ("the seam is torn", "the zip is broken", "it came with a hole in it", "a sleeve is badly sewn",
                         "the fabric had a tear on arrival", "a button was missing from the start"),
            "shoes": ("the sole came off", "the stitching is torn", "the left one has a manufacturing fault",
                      "they came apart by themselves"),
            "underwear": ("it came with a hole in it", "the seam is torn"),
            "cosmetics": ("the bottle was leaking on arrival", "it arrived shattered"),
            "food": ("it arrived spoiled", "it was mouldy on arrival", "the glass was broken on arrival"),
            "furniture": ("one leg is broken", "a board is cracked", "it arrived with a cracked panel",
                          "a hinge was broken on delivery", "the top has a split in it from the factory"),
            "books": ("pages are missing", "it is misprinted", "the cover arrived torn",
                      "half the pages are upside down",
                      "the spine was broken on arrival"),
            "toys": ("a wheel is broken off", "it arrived with broken parts", "an arm was snapped off in the box"),
            "gift card": ("the code does not work", "the code is invalid"),
        },
    },
    "dev": {
        "unopened": {"any": ("the plastic is still around it", "no one has broken the seal",
                             "it's as sealed as it came")},
        "opened": {"any": ("the carton has been opened, that's all", "I peeked inside but never used it",
                           "unwrapped, yet not used at all")},
        "used": {"any": ("I've had it in use", "I made use of it for some time", "it has clearly been used")},
        "defective": {"any": ("it does not function as it should", "it was already damaged when it got here",
                              "it has a fault")},
    },
    "heldout": {
        "unopened": {"any": (
            "the original seal is untouched", "it has stayed in its sealed box", "I haven't broken the seal",
            "the package was left unopened", "it never left its sealed wrapping",
            "the factory seal is still on",
        )},
        "opened": {"any": (
            "I cut the packaging open but did not use it", "the box was opened yet the product is unused",
            "I had a look inside, but it has never been used", "it was taken out of the wrapping only",
            "apart from opening the box I did nothing with it", "it is open, but I made no use of it",
        )},
        "used": {"any": (
            "I have been using it since", "it got used quite a bit", "by now it looks used",
            "I used it on several days",
            "I must admit that I used it", "it has seen some use",
        )},
        "defective": {"any": (
            "it was damaged in transit", "it is not working properly, a defect",
            "it was already broken when it came",
            "it is a faulty piece", "it has been defective since day one", "I received it in a broken state",
        )},
    },
}  # fmt: skip

CONDITION_NOTE: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "unopened": ("unopened", "sealed", "new, sealed", "not opened", "factory sealed"),
        "opened": ("opened", "opened, unused", "open box", "opened but unused", "unpacked, not used"),
        "used": ("used", "worn/used", "in use", "signs of use", "used several times"),
        "defective": ("defective", "broken", "faulty", "damaged on arrival", "does not work"),
    },
    "dev": {
        "unopened": ("still sealed", "seal intact"),
        "opened": ("box opened, never used", "open but not used"),
        "used": ("used by customer", "has been used"),
        "defective": ("arrived damaged", "has a defect"),
    },
    "heldout": {
        "unopened": ("seal unbroken", "unopened box", "original seal on"),
        "opened": ("package opened, item unused", "opened only", "seal broken, not used"),
        "used": ("already used", "shows use", "was used"),
        "defective": ("came broken", "fault found", "defect"),
    },
}  # fmt: skip

DELIVERY: dict[str, tuple[str, ...]] = {
    "train": (
        "it was delivered to {country}", "it was shipped to {country}", "I live in {country}",
        "I am in {country}",
        "the delivery address is in {country}", "you sent it to {country}", "the parcel went to {country}",
        "my address is in {country}", "delivery was to {country}", "it went to my home in {country}",
        "I had it sent to {country}", "we are based in {country}", "I'm writing from {country}",
        "the shipping country was {country}", "it came to us in {country}", "I ordered it to {country}",
        "the package was addressed to {country}", "destination was {country}", "it was posted to {country}",
    ),
    "dev": (
        "you delivered it to my place in {country}", "the box travelled to {country}",
        "{country} is where it was sent",
        "I get my post in {country}",
    ),
    "heldout": (
        "it was dispatched to an address in {country}", "{country} is the country of delivery",
        "my parcels go to {country}", "your courier brought it to {country}",
        "I had you ship it to {country}",
        "we received it in {country}",
    ),
}  # fmt: skip

PURCHASE: dict[str, tuple[str, ...]] = {
    "train": (
        "I bought {item} {ago}", "I purchased {item} {ago}", "{ago} I bought {item}",
        "I ordered {item} {ago}",
        "I got {item} from your shop {ago}", "{item} was bought {ago}", "I bought {item} from you {ago}",
        "it is about {item} that I bought {ago}", "{ago} I purchased {item} in your online shop",
        "I would like to return {item} which I bought {ago}", "my purchase of {item} was {ago}",
        "I want to send back {item} bought {ago}", "the purchase was {ago}, {item}",
        "I paid for {item} {ago}",
        "I picked up {item} {ago}",
    ),
    "dev": (
        "{item}, purchased {ago}, is what I'd like to give back", "I treated myself to {item} {ago}",
        "the order for {item} was placed {ago}",
    ),
    "heldout": (
        "{ago} I chose {item} from your catalogue and paid", "my order of {ago} was {item}",
        "I became the owner of {item} {ago}", "the date of purchase was {ago} and the product is {item}",
        "you sold me {item} {ago}",
    ),
}  # fmt: skip

FILLERS: dict[str, tuple[str, ...]] = {
    "train": (
        "my order number is {order}", "it cost {price} euros", "it was meant as a present",
        "I changed my mind",
        "I don't need it any more", "it is the wrong size", "I don't like the colour",
        "it was for my sister's birthday",
        "please refund me to my card", "I am a regular customer", "my phone number ends in {small}",
        "I'd like my money back", "I ordered {small} other things as well", "my husband bought the same one",
        "I would prefer a refund", "the order reference is {order}", "it does not suit me",
        "sorry for the trouble",
        "I paid {price} euros for it", "it is not what I expected", "I found it cheaper elsewhere",
        "I hope that is possible", "I have been a customer for {small} years",
    ),
    "dev": ("ticket {order}", "the price was {price} euros", "my wife dislikes it"),
    "heldout": ("reference {order}", "I spent {price} euros on it", "it turned out to be a mistake",
                "I have no use for it", "my daughter already owns one"),
}  # fmt: skip
