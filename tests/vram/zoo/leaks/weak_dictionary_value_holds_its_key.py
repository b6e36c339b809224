"""A WeakKeyDictionary forgets nothing whose value refers to its own key."""
# expect: grows
# holder: attribute `features` of Entry at key * of dict `data` (* items),
#   attribute of WeakKeyDictionary `SEEN`, global of module *

import weakref

import torch


class Image:
    pass


class Entry:
    def __init__(self, image, length):
        self.image = image
        self.features = torch.zeros(length)  # here


SEEN = weakref.WeakKeyDictionary()


def encode(length):
    image = Image()
    SEEN[image] = Entry(image, length)


def test_encoding(vram):
    vram.assert_stable(vram.replay(encode, range(1, 21)))
