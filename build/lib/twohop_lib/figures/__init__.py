"""The book's figures: one theme, one palette, a function per kind of figure."""
