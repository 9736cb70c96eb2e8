# ruff: noqa: SIM905  (lists of words are read as a sentence)
"""Who speaks: the synthetic speakers of the training set and the ones kept back.

A name is not a speaker: flite's kal and kal16, awb and awb_time, and slt in flite and in festival are one
person each, and espeak-ng's Gene2 and edward2 are made from Gene and edward. Nobody stands on both sides.
"""

from __future__ import annotations

ACCENTS = ("en-us",) * 3 + ("en-gb",) * 2 + ("en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc", "en-gb-x-gbclan")

ESPEAK_TRAIN = tuple(
    "f1 f3 f5 m1 m2 m3 m5 m7 m8 Alex Alicia Andy Annie Denis Diogo Henrique Hugo Jacky Lee Marco Mario Michael "
    "Mike Storm adam anika announcer antonio aunty belinda benjamin boris caleb david ed gustave iven iven2 iven3 "
    "john kaukovalta klatt klatt2 klatt3 klatt4 marcelo max michel miguel norbert pablo paul pedro quincy rob "
    "robert sandro shelby steph steph2 steph3 travis victor zac".split()
)
ESPEAK_HELD_OUT = tuple("f2 f4 m4 m6 Andrea Gene linda edward".split())

# Voice -> the range of mean pitch in Hz it is asked for.
FLITE_TRAIN = {"kal16": (80, 170), "awb": (90, 170), "slt": (130, 240)}
FLITE_HELD_OUT = {"rms": (85, 110)}

# Festival's own speakers, from the packages festvox-kdlpc16k and festvox-us-slt-hts.
FESTIVAL_TRAIN = ("ked_diphone", "cmu_us_slt_arctic_hts")
