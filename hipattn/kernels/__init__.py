"""One module per kernel family, under the name of its source: argument struct, specialisation, launch."""
