"""How Sphinx makes the pages; `build.py` gathers what they are made from."""

project = "Stackelberg Game Preference Optimization"
author = "the authors of sgpo-lib"
copyright = "the authors, Apache-2.0"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
html_theme = "furo"
html_title = "SGPO"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
suppress_warnings = ["misc.highlighting_failure", "toc.not_included"]  # tables of figures/ are pages of no chapter
