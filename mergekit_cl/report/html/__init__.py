"""The page to look at: content.py (what it says), library.py (plotly), page.py (the file)."""
