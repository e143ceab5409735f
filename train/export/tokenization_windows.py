"""Text <-> ids of a model over equal-information windows, several ids a window, for Hugging Face `transformers`.

This file lies beside an exported model and stands alone. `depths.npy` and `last_bytes.npy` are a tree of byte strings,
its nodes in the order of a walk that takes a node before its children: how many bytes each string has, and its last
one. A window of text is the longest string of the tree that the text goes on with; its ids are the bytes of the
string's number, the high one first.
"""

import pathlib
import shutil

import numpy as np
from transformers import PreTrainedTokenizer


class WindowTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"depths_file": "depths.npy", "last_bytes_file": "last_bytes.npy"}

    def __init__(self, depths_file, last_bytes_file, **kwargs):
        self._files = [pathlib.Path(depths_file), pathlib.Path(last_bytes_file)]
        depths, self._last_bytes = (np.load(file, allow_pickle=False) for file in self._files)
        self._parents = np.full(len(depths), -1, np.int64)
        for depth in range(2, int(depths.max()) + 1):
            nodes, above = np.flatnonzero(depths == depth), np.flatnonzero(depths == depth - 1)
            self._parents[nodes] = above[np.searchsorted(above, nodes) - 1]
        keys = (self._parents + 1) << 8 | self._last_bytes
        self._by_key = np.argsort(keys)
        self._keys = keys[self._by_key]
        self._ids_per_window = (len(depths).bit_length() - 1) // 8
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return 256

    def get_vocab(self):
        return {self._convert_id_to_token(id_): id_ for id_ in range(256)} | self._added_tokens_encoder

    def _child(self, number, byte):
        """The number of a string and one more byte, -1 where the tree has none; number -1 is the empty string."""
        key = (number + 1) << 8 | byte
        place = self._keys.searchsorted(key)
        return int(self._by_key[place]) if place < len(self._keys) and self._keys[place] == key else -1

    def _windows(self, text):
        number = -1
        for byte in text:
            longer = self._child(number, byte)
            if longer < 0:
                yield number
                longer = self._child(-1, byte)
            number = longer
        if number >= 0:
            yield number

    def _string(self, number):
        """The bytes that a window's number stands for."""
        reversed_bytes = []
        while number >= 0:
            reversed_bytes.append(int(self._last_bytes[number]))
            number = int(self._parents[number])
        return bytes(reversed(reversed_bytes))

    def _tokenize(self, text, **kwargs):
        return [
            self._convert_id_to_token(id_)
            for number in self._windows(text.encode())
            for id_ in number.to_bytes(self._ids_per_window, "big")
        ]

    def _convert_token_to_id(self, token):
        return int(token[3:5], 16)

    def _convert_id_to_token(self, index):
        return f"<0x{index:02X}>"

    def convert_tokens_to_string(self, tokens):
        """What follows no whole window stands for nothing, also before a special token."""
        text, ids = b"", b""
        for token in tokens:
            if token in self._added_tokens_encoder:
                text, ids = text + token.encode(), b""
                continue
            ids += bytes([self._convert_token_to_id(token)])
            if len(ids) == self._ids_per_window:
                text, ids = text + self._string(int.from_bytes(ids, "big")), b""
        return text.decode("utf-8", "replace")

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        if self.cls_token_id is None:
            return [self.bos_token_id, *token_ids_0] + (
                [] if token_ids_1 is None else [self.bos_token_id, *token_ids_1]
            )
        return [self.cls_token_id, *token_ids_0, self.sep_token_id] + (
            [] if token_ids_1 is None else [*token_ids_1, self.sep_token_id]
        )

    def save_vocabulary(self, save_directory, filename_prefix=None):
        names = [f"{filename_prefix}-{file.name}" if filename_prefix else file.name for file in self._files]
        targets = [pathlib.Path(save_directory) / name for name in names]
        for file, target in zip(self._files, targets):
            if file.resolve() != target.resolve():
                shutil.copyfile(file, target)
        return tuple(map(str, targets))
