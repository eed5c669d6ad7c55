"""The language of what users say: one sentence of each that can be told, and what can't be."""

# ruff: noqa: RUF001 - other scripts have letters that look like ours

from __future__ import annotations

import time

import pytest

from router.language import FREQUENT, READ_CHARACTERS_MAX, UNKNOWN, language_of

SENTENCES = {
    "en": "I bought a toaster from your shop and it does not work, what can I do to return it?",
    "de": "Ich habe bei Ihnen einen Toaster gekauft und er funktioniert nicht, wie kann ich ihn zurückgeben?",
    "fr": "J'ai acheté un grille-pain dans votre magasin et il ne fonctionne pas, comment puis-je le rendre ?",
    "es": "Compré una tostadora en su tienda y no funciona, ¿cómo puedo devolverla para que me den el dinero?",
    "it": (
        "Ho comprato un tostapane nel vostro negozio ma non funziona, come posso restituirlo e avere il mio denaro?"
    ),
    "pt": (
        "Comprei uma torradeira na sua loja e não funciona, como posso devolver o aparelho para ter o meu dinheiro?"
    ),
    "nl": (
        "Ik heb een broodrooster in uw winkel gekocht maar hij "
        "werkt niet, hoe kan ik het apparaat terugbrengen naar de winkel?"
    ),
    "sv": (
        "Jag har köpt en brödrost i er butik men den fungerar inte, hur kan jag lämna tillbaka den och få pengarna?"
    ),
    "da": (
        "Jeg har købt en brødrister i jeres butik, men den virker ikke. "
        "Hvordan kan jeg få pengene tilbage af jer, og hvad er reglerne?"
    ),
    "nb": (
        "Jeg har kjøpt en brødrister i butikken deres, men den virker ikke. Hva er "
        "det jeg må gjøre for å få pengene tilbake, og hva av dette koster?"
    ),
    "fi": ("Ostin leivänpaahtimen kaupastanne mutta se ei toimi, mitä minun pitää tehdä että voin palauttaa sen?"),
    "pl": (
        "Kupiłem toster w waszym sklepie, ale nie działa. Czy mogę go zwrócić i jak to się robi, jeżeli został otwarty?"
    ),
    "cs": (
        "Koupil jsem toustovač ve vašem obchodě, ale nefunguje. Jak se "
        "to dá vrátit a kdy mi pošlete peníze, když je otevřený?"
    ),
    "hu": ("Vettem egy kenyérpirítót az üzletben, de nem működik. Hogy lehet visszaadni, és mikor kapom meg az árát?"),
    "ro": (
        "Am cumpărat un prăjitor de la magazin, dar nu funcționează. "
        "Ce trebuie să fac pentru a-l returna și când primesc banii?"
    ),
    "tr": (
        "Mağazanızdan bir ekmek kızartma makinesi aldım ama çalışmıyor. İade "
        "için ne yapmam gerekiyor ve bu ne kadar sürer?"
    ),
    "id": (
        "Saya membeli pemanggang roti dari toko ini dan tidak berfungsi, bagaimana saya bisa mengembalikan barang itu?"
    ),
    "vi": ("Tôi đã mua một máy nướng bánh mì ở cửa hàng này nhưng nó không hoạt động, tôi có được trả lại không?"),
    "ru": (
        "Я купил у вас тостер, но он не работает. Как я могу его вернуть, и когда вы вернёте мне деньги? Это срочно."
    ),
    "uk": "Я купив у вас тостер, але він не працює. Як я можу його повернути і коли ви повернете гроші?",
    "el": "Αγόρασα μια τοστιέρα από το κατάστημά σας και δεν λειτουργεί. Πώς μπορώ να την επιστρέψω;",
    "he": "קניתי אצלכם טוסטר והוא לא עובד. איך אפשר להחזיר אותו?",
    "ar": "اشتريت محمصة من متجركم ولكنها لا تعمل. كيف يمكنني إرجاعها؟",
    "fa": "من یک توستر از فروشگاه شما خریدم اما کار نمی\u200cکند. چگونه می\u200cتوانم آن را پس بدهم؟",
    "hi": "मैंने आपकी दुकान से एक टोस्टर खरीदा लेकिन वह काम नहीं करता। मैं इसे कैसे लौटा सकता हूँ?",
    "th": "ฉันซื้อเครื่องปิ้งขนมปังจากร้านของคุณแต่ใช้งานไม่ได้ จะคืนได้อย่างไร",
    "ja": "御社の店でトースターを買いましたが、動きません。どうすれば返品できますか。",
    "zh": "我在你们店里买了一台烤面包机,但它不能用。我怎样才能退货?",
    "ko": "매장에서 토스터를 샀는데 작동하지 않습니다. 어떻게 반품할 수 있나요?",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_of_its_language_also_a_long_text_of_them(language: str) -> None:
    assert language_of(SENTENCES[language]) == language
    assert language_of(20 * f"{SENTENCES[language]} ") == language


def test_every_language_that_is_told_by_its_words_has_a_sentence_here() -> None:
    assert set(FREQUENT) <= set(SENTENCES)


@pytest.mark.parametrize(
    "text",
    ["", "ok", "12345", "x" * 5000, '{"item": "toaster", "days": 3}', "\ud800\udfff\x00", "🙂🙂🙂", "a" * 399 + "я"],
)
def test_what_can_not_be_told_is_said_to_be_unknown(text: str) -> None:
    assert language_of(text) == UNKNOWN


def test_no_more_than_the_beginning_is_read() -> None:
    english, german = SENTENCES["en"], SENTENCES["de"]
    beginning = (5 * english)[:READ_CHARACTERS_MAX]
    assert language_of(beginning + 1000 * german) == "en"


def test_a_text_takes_some_microseconds() -> None:
    for sentence in SENTENCES.values():
        text = 20 * f"{sentence} "
        seconds = []
        for _ in range(30):
            began = time.process_time()
            for _ in range(50):
                language_of(text)
            seconds.append((time.process_time() - began) / 50)
        assert min(seconds) < 60e-6  # some 5 to 9 on an idle core
