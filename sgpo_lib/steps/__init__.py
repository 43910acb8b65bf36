"""The steps of the loop as functions on a run: what the notebooks and the launcher for several devices both call.

This room joins the others: it knows in which order they are called and what each step leaves in its folder. It draws
nothing.
"""
