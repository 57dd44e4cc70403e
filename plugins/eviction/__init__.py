"""Methods that keep a number of cache entries for each head after every scale, and differ in which they keep.

Points: `bN` keeps N percent of the entries that any step reads, and `rN` drops N percent of all tokens, as papers count
that leave the last scale in, whose entries nobody reads. So `r50` on 256 pixels is `b80`.
"""
