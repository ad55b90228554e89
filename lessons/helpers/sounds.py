"""Short sounds as spectrograms of the size of a picture, so that `convnet` reads them as well.

A sound is a gesture: how its pitch or its loudness changes in a quarter of a second. All
instruments play the same gestures; an instrument is the strengths of its overtones.
"""

from functools import lru_cache

import numpy as np

from minilora.lessons.helpers import convnet

RATE = 8000  # samples per second
WINDOW, HOP = 256, 128  # samples: a column of the spectrogram, and from one to the next
SIDE = 16  # bands, and columns
SAMPLES = WINDOW + HOP * (SIDE - 1)
GESTURES = ("steady", "rising", "falling", "hill", "valley", "warble", "beats", "chord")
INSTRUMENTS = {  # strength of the first, second, … harmonic
    "whistle": (1.0,), "reed": (0.5, 0.1, 0.9, 0.1, 0.7, 0.1, 0.5),
    "string": (0.3, 1, 0.8, 0.6, 0.5, 0.4),
}  # fmt: skip


def wave(gesture, instrument, rng):
    """Return SAMPLES of sound, about ±1: a gesture at a random pitch, width and phase."""
    t = np.linspace(0, 1, SAMPLES)
    pitch = rng.uniform(300, 900)  # hertz
    width = rng.uniform(0.3, 0.5)  # how far the pitch moves, as a share of it
    turns = rng.uniform(3, 4)
    bend = {
        "rising": t - 0.5, "falling": 0.5 - t, "hill": 0.5 - 2 * abs(t - 0.5),
        "valley": 2 * abs(t - 0.5) - 0.5, "warble": 0.5 * np.sin(2 * np.pi * turns * t),
    }.get(gesture, 0 * t)  # fmt: skip
    # phase = 2π ∫ frequency dt
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 2 * width * bend)) / RATE
    notes = (1, 1.5) if gesture == "chord" else (1,)
    sound = sum(
        strength * np.sin(h * note * phase + rng.uniform(0, 2 * np.pi))
        for note in notes
        for h, strength in enumerate(INSTRUMENTS[instrument], 1)
        if h * note * pitch * (1 + width) < RATE / 2  # higher frequencies cannot be sampled
    )
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * turns * t) if gesture == "beats" else 1
    return sound * loudness * rng.uniform(0.5, 1)


def spectrogram(sound):
    """Return (SIDE bands, SIDE columns): the log of the energy, in bands equally wide in log f."""
    at = HOP * np.arange(SIDE)[:, None] + np.arange(WINDOW)
    energy = np.abs(np.fft.rfft(sound[at] * np.hanning(WINDOW))) ** 2  # (columns, frequencies)
    edges = np.geomspace(200, RATE / 2, SIDE + 1) / RATE * WINDOW
    hertz = np.arange(energy.shape[1])
    # each band is a triangle that ends at its neighbours' centres, so none is empty
    centres = (edges[1:] + edges[:-1]) / 2
    weight = np.maximum(
        0, 1 - abs(hertz - centres[:, None]) / np.maximum(1, np.diff(edges))[:, None]
    )
    return np.log(weight @ energy.T + 1)


def play(instrument, n, seed, noise=0.3):
    """Return n spectrograms (n, SIDE, SIDE), about ±1, and their labels, the gestures in order."""
    rng = np.random.default_rng([4, seed, sorted(INSTRUMENTS).index(instrument)])
    labels = np.arange(n) % len(GESTURES)
    waves = (wave(GESTURES[label], instrument, rng) for label in labels)
    sounds = [spectrogram(w + noise * rng.standard_normal(SAMPLES)) for w in waves]
    return (np.array(sounds, "f4") - 4) / 4, labels


def masked(spectrograms, rng, width=4):
    """Set a band of frequencies and an interval of time to the mean of each spectrogram.

    Both are up to `width` wide (SpecAugment, Park et al. 2019, Sec. 2).
    """
    n = len(spectrograms)
    fill, hidden = spectrograms.mean(axis=(1, 2), keepdims=True), False
    for axis in (1, 2):
        size = rng.integers(0, width + 1, (n, 1))
        first = rng.integers(0, SIDE - size + 1)
        inside = (np.arange(SIDE) >= first) & (np.arange(SIDE) < first + size)
        hidden = hidden | np.expand_dims(inside, 3 - axis)
    return np.where(hidden, fill, spectrograms)


@lru_cache
def listener(seed=0, iters=200):
    """Return (base, running) of a network that knows the gestures of a whistle."""
    return convnet.pretrain(play("whistle", 1600, seed), len(GESTURES), seed, iters)
