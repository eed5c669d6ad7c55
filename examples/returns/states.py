"""Ways to tell of a receipt and of the state of goods, for training rows; the notation is that of `phrases.py`."""

from __future__ import annotations

PAPER = "[receipt|receipt|receipt|invoice|bill|till receipt|sales receipt|proof of purchase|e-receipt|purchase receipt]"
RECEIPTS: dict[bool, tuple[str, ...]] = {
    True: (
        f"{{i}} {{have}} [the|a|my|the original] {PAPER}[| here| with {{me}}| too| as well| of course| to "
        f"hand| at home]",
        f"{{i}} still {{have}} [the|{{my}}|that] {PAPER}",
        f"{{i}} [did keep|kept|saved|filed|scanned|photographed|printed out] [the|{{my}}] {PAPER}",
        f"[the|{{my}}] {PAPER} is [here|there|attached|enclosed|available|no problem|in {{my}} "
        f"[drawer|e-mail|purse|folder|pocket]]",
        f"{{i}} can [show|send|bring|forward|e-mail|mail|provide|produce|present] [the|a|{{my}}] {PAPER}",
        f"[the|a copy of the|a photo of the|a picture of the|a pdf of the] {PAPER} [is attached|is "
        f"included|can be sent|comes with the parcel|was added]",
        f"{{i}} {{havent}} [lost|thrown away|misplaced|deleted] the {PAPER}",
        "{i} never throw{s} [receipts|bills|invoices] away, [so it's here|this one neither|so yes, it's there]",
        f"{{i}} didn't [lose|throw away|throw out] the {PAPER}[|, it's here|, don't worry]",
        f"the {PAPER} {{i}} do{{es}} have",
        f"with [the |a |its |]{PAPER}",
        f"{PAPER} [yes|in hand|present|attached|still here|not lost|kept|found]",
        f"yes, [there is a|{{i}} {{have}} the|with] {PAPER}",
        f"the {PAPER} [turned up again|was in the bag after all|was not lost after all|has been found]",
        f"[at first {{i}} couldn't find|{{i}} thought {{i}} had lost] the {PAPER} but [it has turned up|now "
        f"it is here|{{i}} found it]",
        f"{{i}} {{have}} everything: {PAPER}, box, bag",
        f"there is a {PAPER}",
        f"the {PAPER} exists and {{i}} can [prove|show] it",
        f"{{i}}'ll [bring|send|enclose] the {PAPER}[| along| with it]",
        f"{{i}} [{{was}} careful enough to keep|made sure to keep|luckily kept|thankfully kept] the {PAPER}",
        f"nothing is missing, the {PAPER} [neither|is there too]",
        "{i} {have} proof that {i} bought it[|: the receipt|, namely the invoice]",
        f"{{my}} [husband|wife|mother|dad|son] [kept|still has|put away|found] the {PAPER}",
        f"the {PAPER} came by e-mail and {{i}} still {{have}} it",
        f"the {PAPER} is [a bit crumpled|faded|torn|stained] but [readable|there|{{i}} {{have}} it]",
        f"the {PAPER} [is safe|is kept safe|is still in the box|is taped to the box|was kept]",
    ),
    False: (
        f"{{i}} {{dont}} have [the|a|any|{{my}}] {PAPER}[| any more| anymore| now| here]",
        f"{{i}} {{havent}} got [the|a|any] {PAPER}[| any more| left]",
        f"{{i}} no longer {{have}} [the|a|{{my}}] {PAPER}",
        f"{{i}} {{have}} no {PAPER}[| for it| whatsoever| at all]",
        f"{{i}} [lost|threw away|threw out|tossed|misplaced|binned|shredded|accidentally "
        f"deleted|burned|didn't keep] [the|{{my}}] {PAPER}",
        f"{{i}} {{have}} [lost|thrown away|mislaid|misplaced] [the|{{my}}] {PAPER}",
        f"{{i}} can't [show|find|provide|produce|send|locate] [the|a|any|{{my}}] {PAPER}[| any more]",
        f"[the|{{my}}] {PAPER} [is lost|is gone|went missing|got lost|was thrown away|went through the "
        f"wash|is not here|can't be found|flew out of the window|is in the rubbish]",
        f"there is no {PAPER}[|, sorry| any more| with it| to show]",
        f"without [a|the|any] {PAPER}",
        f"no {PAPER}[|, sorry| unfortunately| any more| left| at all| though]",
        f"{{i}} [never got|never received|was never given|wasn't handed|didn't get] a {PAPER}",
        f"{PAPER} [lost|missing|gone|thrown away|not kept|not found|none|nope]",
        f"{{i}} {{have}} nothing to show that {{i}} bought it, no {PAPER}",
        f"{{i}} {{have}} the [box|bag|price tag|packaging], but [not the|no] {PAPER}",
        f"[all|everything] is there [except|but] the {PAPER}",
        f"the only thing missing is the {PAPER}",
        f"{{i}} [looked|searched] [everywhere|the whole house|all over] for the {PAPER}[| in vain| without "
        f"luck| but no]",
        f"{{my}} [dog|son|daughter|cat|husband] [destroyed|threw away|tore up|lost|chewed up] the {PAPER}",
        f"{{i}} [forgot to ask for|forgot to keep|didn't ask for|didn't think of keeping] [a|the] {PAPER}",
        f"it was a present, so {{i}} {{have}} no {PAPER}",
        f"{{i}} only {{have}} [a bank statement|the card statement|the box|a photo of the shelf], no {PAPER}",
        f"{{i}} thought {{i}} had the {PAPER} but [it's gone|it was for something else|it isn't there|no]",
        f"the {PAPER} [didn't survive|got wet and fell apart|was thrown out by mistake|has been lost|is "
        f"unreadable and in the bin now]",
        f"{{i}} wish {{i}} had kept the {PAPER}[|, but no]",
        f"{{i}} [should have kept|ought to have kept] the {PAPER}, but {{i}} didn't",
        f"{{i}} {{am}} unable to [show|find|provide] [a|the] {PAPER}",
        f"a {PAPER}? [no|gone|lost|{{i}} {{have}} none|not any more]",
    ),
}

FINE = (
    "[nothing is wrong with it|there's no defect|it isn't broken|it works fine|no fault at all|not "
    "damaged in any way|it is in perfect order]"
)
STATES: dict[str, dict[str, tuple[str, ...]]] = {
    "unopened": {
        "any": (
            "{it} [is|is still|has stayed|remained] [sealed|unopened|closed|shrink-wrapped|in its sealed "
            "[box|bag|packaging|carton]|untouched in the box]",
            "{i} {havent} [opened|unsealed|unpacked|unwrapped|touched] it[| yet| at all| so far]",
            "{i} [never|did not|didn't even|didn't] [open|unseal|unpack|unwrap] [it|the box|the package|the "
            "packaging|the parcel]",
            "the [box|package|packaging|carton|wrapping|bag|foil|tape] [is|is still|remains] "
            "[sealed|closed|unopened|shut|intact and closed]",
            "the [seal|tape|sticker|shrink wrap|security seal|cellophane] [is|is still] [on|intact|in "
            "place|unbroken|on it]",
            "[never opened|not opened|unopened|still sealed|sealed|brand new in sealed box|new and "
            "sealed|not even opened|unopened, like new|box never opened]",
            "it [has been|was] [never|not] [opened|unpacked|unwrapped|unsealed][| by anyone]",
            "it [sat|stood|lay|has been lying|has been sitting] [unopened|sealed|in its sealed box] [in the "
            "hall|on a shelf|in a cupboard|in the garage|in the corner]",
            "nobody [opened|has opened|unpacked|touched] it",
            "{i} left it [as it came|as delivered], [sealed|unopened|not opened]",
            f"it's [unopened|sealed|never been opened], {FINE}",
            "it hasn't been [opened|unpacked|unwrapped|out of its sealed box]",
            "everything is [still sealed|unopened|sealed as on the first day]",
            "{i} {havent} so much as [opened the box|cut the tape|lifted the lid]",
            "{i} didn't use it, didn't even open it",
            "not used, not opened",
            "{i} wanted to open it but [didn't|never did|left it sealed]",
            "it's in [mint|new] condition, [sealed|unopened]",
            "still [in the plastic|in shrink wrap|in the cellophane|in its closed box][|, never opened]",
        ),
        "clothing": ("the bag with it is still sealed, not tried on", "never taken out of the sealed bag"),
        "shoes": ("the shoe box is still sealed, never tried on", "never taken out of the closed box"),
        "underwear": ("the pack is still sealed", "not taken out of the packet, never opened"),
        "cosmetics": ("the [cap|lid] is still sealed", "the [foil|film] on it is unbroken, never opened"),
        "food": ("[not eaten, not opened|unopened and uneaten|still vacuum sealed|the lid is still sealed]",),
        "furniture": ("still [flat-packed in the closed box|in its sealed carton|unopened on the pallet]",),
        "books": ("still in [its foil|cellophane|shrink wrap], [unread|not opened]",),
        "toys": ("[the child never unwrapped it|still sealed in its box, not played with]",),
        "gift card": ("[not redeemed|not activated|still in its sealed envelope|the code is not scratched off]",),
    },
    "opened": {
        "any": (
            "{i} [opened|unpacked|unwrapped|unboxed] it but [never used it|didn't use it|{havent} used "
            "it|it is unused|that's all|not more than that]",
            "{i} opened [the box|the package|it|the packaging] [but|and] [have not used it|left it "
            "unused|never used the thing|used nothing]",
            "it [is|has been|was] opened[, but| but|, yet| and] [not used|unused|never used|it wasn't used]",
            "[opened|unpacked|unboxed|unwrapped|open box] [but|and] [not used|unused|never used]",
            "the [box|package|seal|wrapping|carton|packaging] [is|has been|was] "
            "[open|opened|broken|removed] but it [is unused|was never used|has not been used]",
            "{i} [just|only] [opened it|opened the box|took it out of the box|looked at it|unpacked it][| "
            "to see the colour| to look at it| and put it back| for a minute| and that's it]",
            "{i} broke the seal[, but never used it|, nothing more| only to look]",
            "{i} took [the wrapping|the plastic|the packaging] off [but didn't use it|and never used it|, that is all]",
            "it's unused, [but|though] [the box is open|it has been opened|the seal is broken|opened]",
            "never used[, although {i} did open it|, only opened|, just unpacked|, though it's out of the box]",
            "{i} {havent} used it, just opened it",
            "it [isn't|is not] sealed any more but it [isn't|is not] used either",
            "it is out of [the|its] [box|packaging], [unused|not used|never used]",
            f"opened, not used, {FINE}",
            "{i} [did open|had to open] it, [but it's as new|it was never used|using it {i} did not]",
            "the only thing {i} did was open [it|the box]",
            "not sealed any longer, but [unused|never used]",
            "[once|when] {i} [opened|unpacked] it {i} [saw it was the wrong one|didn't like it|knew it was "
            "not for {me}][| and never used it| and left it]",
            "opened [yesterday|last night|once|right away], never used",
        ),
        "clothing": (
            "[tried on once, not worn|{i} tried it on and it didn't fit, never wore it|just tried on, tags "
            "still on|the tags are on, bag opened, not worn]",
        ),
        "shoes": (
            "[only tried on at home|tried on once on the carpet, not worn|{i} tried them on, too small, "
            "never wore them]",
        ),
        "underwear": ("[{i} opened the packet|the packet is open but not worn|taken out of the packet, never worn]",),
        "cosmetics": (
            "[{i} opened it but didn't put any on|opened and smelled at, not used|the seal on the lid is "
            "broken, nothing is used up]",
        ),
        "food": (
            "[{i} opened it but ate nothing|the packet is open, nothing eaten|opened, not tasted|the lid "
            "was opened, nothing is missing]",
        ),
        "furniture": (
            "[unpacked but not assembled|{i} opened the carton and did not build it|out of the carton, never set up]",
        ),
        "books": ("[unwrapped, not read|{i} took the foil off but {havent} read it|opened, not read]",),
        "toys": ("[the box is open, not played with|unwrapped, never played with]",),
        "gift card": ("[the envelope is open|{i} opened the envelope, nothing spent]",),
    },
    "used": {
        "any": (
            "{i} [used|have used|did use|already used|tried and used] it[| a bit| once| twice| a few times| "
            "several times| daily| a lot| for some days| on holiday| at work]",
            "it [is|has been|was] [used|in use|well used|used a few times|used regularly|heavily used|used daily]",
            "{i}'ve been using it[| every day| since| all week| for a while| a lot| now and then]",
            "it [shows|has] [signs of use|traces of use|signs of wear|scratches from use|marks from use]",
            "[used|used once|used twice|lightly used|used a few times|used for a week|used but "
            "clean|already used|used daily|second-hand by now]",
            f"{{i}} used it, {FINE}",
            f"{FINE}, but {{i}} have used it",
            "it isn't new any more, {i} used it",
            "it was [in use|used] [for a week|for ten days|until yesterday|at a party|on a trip|by the whole family]",
            "{my} [husband|wife|son|daughter|mother|neighbour] [used it|has been using it|uses it every day]",
            "{i} [tested|tried] it [properly|for days|at home for a week] and used it",
            "{i} can't say it's unused, {i} used it [once|twice|a little]",
            "it's been used, not [just opened|only unpacked]",
            "{i} didn't just open it, {i} used it",
            "it has [had some use|been through some use|a few scratches from daily use]",
            "it's [used|been used] [but|yet] [in good condition|like new|clean|in good shape|it works]",
            "{i} [had it in use|have it in use|kept using it]",
            "we've all used it",
        ),
        "clothing": (
            "[{i} wore it|worn once|worn a few times|it has been worn|{i} wore and washed it|washed "
            "twice|{i} wore it to a wedding|{i} have been wearing it|it's been worn and smells of smoke]",
        ),
        "shoes": (
            "[{i} wore them|worn outside|they were worn twice|{i} hiked in them|{i} wore them to work all "
            "week|the heels are worn down|muddy from walking]",
        ),
        "underwear": ("[{i} wore it|worn|worn once|it was worn and washed|{i} have been wearing it]",),
        "cosmetics": (
            "[{i} used some of it|{i} put it on twice|about a third is used up|{i} tried some on {my} "
            "skin|it is almost empty|{i} wore it out one evening]",
        ),
        "food": (
            "[{i} ate some|{i} tried a piece|half of it is eaten|{i} drank a glass of it|we had a taste and "
            "didn't like it|a few are eaten]",
        ),
        "furniture": (
            "[it's been standing in {my} flat in use|assembled and used|{i} put it together and have used "
            "it|we sat on it for weeks|{i} slept on it]",
        ),
        "books": (
            "[{i} read it|{i}'ve read it|read once|read and underlined in|{i} read it on holiday|it's been "
            "read cover to cover]",
        ),
        "toys": (
            "[the kids played with it|it was played with|{my} daughter plays with it|played with for "
            "days|the children have had it in use]",
        ),
        "gift card": ("[part of it is spent|{i} already redeemed it|partly used|there are 10 euros left on it]",),
    },
    "defective": {
        "any": (
            "it [arrived|came|was delivered|turned up|reached {me}] "
            "[broken|damaged|defective|cracked|smashed|in pieces|faulty|with a crack|dented and broken]",
            "it [is|was] [defective|faulty|broken|damaged] [from the start|from day one|on arrival|when it "
            "came|out of the box|when {i} opened it]",
            "it [is|'s] [defective|faulty|a dud|a faulty one|broken|not working]",
            "it [doesn't|does not|won't|never did] work[| at all| properly| any more| as it should]",
            "it has [a defect|a fault|a manufacturing defect|a production fault|a factory fault|something "
            "broken inside]",
            "[broken|defective|faulty|arrived broken|came damaged|broken on arrival|dead on "
            "arrival|DOA|damaged in the post|not working|has a fault]",
            "it [broke|fell apart|failed|gave up|stopped working|died] [after one day|after a week|on first "
            "use|by itself|the second time {i} used it|all by itself|after two uses]",
            "[part of it|one part|a piece of it] [is broken|was broken off|was smashed|is cracked|arrived broken]",
            "there is [something wrong with it|a defect in it|damage from the delivery|a crack in it|a hole "
            "in it from the factory]",
            "when {i} opened [the box|it|the parcel] it was [broken|damaged|in pieces|cracked]",
            "the [courier|post|carrier|driver] must have dropped it, it [is broken|came damaged|is smashed]",
            "you sent {me} a [broken|faulty|damaged|defective] one",
            "{i} used it [once|for two days|a few times] and [it broke|it stopped working|it turned out to "
            "be faulty|then it died]",
            "{i} opened it and [it was broken|it doesn't work|found it damaged|saw it is defective]",
            "{i} did nothing wrong, it's [defective|faulty|a defect]",
            "it never worked",
            "it's no good, there's a [defect|fault|manufacturing fault]",
            "the box was fine but [the thing inside was broken|what is inside is broken|it was broken inside]",
            "{i} can't use it, it's [broken|faulty|defective|damaged]",
        ),
        "electronics": (
            "it [won't turn on|won't switch on|doesn't charge|shuts down by itself|smokes|overheats|keeps "
            "crashing|makes no sound|stays black]",
            "the [screen|display|motor|button|battery|plug|speaker|sensor] [is dead|is broken|doesn't "
            "work|flickers|came cracked|is faulty|died]",
        ),
        "clothing": (
            "[a seam came open by itself|there was a hole in it when it came|the zip doesn't close, "
            "faulty|the colour ran, a production fault|a sleeve was torn when it arrived]",
        ),
        "shoes": (
            "[the sole fell off|the heel broke off|one has a tear from the factory|the glue doesn't "
            "hold|the eyelets were torn on arrival]",
        ),
        "underwear": (
            "[it came with a tear|the elastic was broken from the start|the hook was broken on arrival|the "
            "stitching is faulty]",
        ),
        "cosmetics": (
            "[it leaked in the parcel|the jar came cracked|the pump is broken|it arrived smashed|the bottle "
            "was broken when it came]",
        ),
        "food": (
            "[it was mouldy|it came rotten|it had gone off when it arrived|the jar was smashed on "
            "arrival|it was past its date and bad when it came|the tin was burst]",
        ),
        "furniture": (
            "[a leg was broken|the drawer is split|it wobbles, a defect|the glass top was shattered on "
            "arrival|a screw hole is drilled wrong, faulty|the back came cracked]",
        ),
        "books": (
            "[twenty pages are missing|the binding fell apart|it is misprinted|pages came loose, faulty "
            "binding|it came with torn pages]",
        ),
        "toys": (
            "[a piece was broken in the box|the wheels came off at once|it came with its head broken "
            "off|the battery lid is broken, faulty]",
        ),
        "gift card": ("[the code doesn't work|the code is rejected, faulty|the card was damaged on arrival]",),
    },
}

STATE_NOTES: dict[str, tuple[str, ...]] = {
    "unopened": (
        "unopened",
        "sealed",
        "still closed",
        "never opened",
        "new in box",
        "NIB sealed",
        "closed box",
        "new/sealed",
        "in sealed wrap",
        "not unpacked",
        "mint, sealed",
        "unused and unopened",
    ),
    "opened": (
        "opened",
        "opened/unused",
        "opened, never used",
        "unboxed, unused",
        "open, not in use",
        "box open, unused",
        "unsealed but unused",
        "opened only, no use",
        "tried out of the box, not used",
        "unwrapped/unused",
    ),
    "used": (
        "used",
        "in use",
        "used, ok",
        "worn",
        "second hand",
        "signs of wear",
        "used 3x",
        "used, works",
        "lightly used",
        "heavily used",
        "used a lot",
        "no longer new, used",
    ),
    "defective": (
        "defective",
        "broken",
        "faulty",
        "DOA",
        "damaged",
        "not working",
        "broken on delivery",
        "out of order",
        "arrived in pieces",
        "malfunction",
        "damaged by courier",
        "does not switch on, faulty",
    ),
}
