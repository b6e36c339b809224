"""A tokenizer needs no memory on the device, and says so."""
# expect: stable

WORDS = {"what": 1, "is": 2, "a": 3, "lap": 4}


def encode(text):
    return [WORDS.get(word, 0) for word in text.split()]


def test_tokens(vram):
    vram.assert_stable(vram.replay(encode, ["what is a lap", "what", "a lap"], allocates=False))
