"""Which of these is most like the Zen of Python? A model of pairs of letters decides."""

import codecs
import contextlib
import io

import nbest
import numpy as np

with contextlib.redirect_stdout(io.StringIO()):
    import this

CANDIDATES = [
    "explicit is better than implicit",
    "implicit is better then explicit",
    "expilcit si bettre thna imlpicit",
]


def letters(text):
    """a to z as 1 to 26, and all else as 0."""
    return np.array([ord(c) - 96 if "a" <= c <= "z" else 0 for c in text.lower()])


def model():
    """Logits of the next letter for each letter: how often it follows."""
    text = letters(codecs.decode(this.s, "rot13"))
    counts = np.full((27, 27), 0.1)
    np.add.at(counts, (text[:-1], text[1:]), 1)
    return np.log(counts).astype(np.float32)


def score(texts):
    read = [letters(f" {text} ") for text in texts]
    logits = model()[np.concatenate([text[:-1] for text in read])]
    starts = np.cumsum([0] + [len(text) - 1 for text in read])
    return nbest.perplexities(logits, np.concatenate([text[1:] for text in read]), starts)


if __name__ == "__main__":
    perplexities = score(CANDIDATES)
    for k in perplexities.argsort():
        print(f"{perplexities[k]:8.2f}  {CANDIDATES[k]}")
