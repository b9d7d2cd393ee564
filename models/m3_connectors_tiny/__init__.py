"""The files of m3-tiny, in the folder ``m3-tiny`` beside this one; ``M3Encoder("m3-tiny")`` finds them."""
