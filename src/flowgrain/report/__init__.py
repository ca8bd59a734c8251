"""Self-contained HTML pages: blocks and sections, figures, and the comparison of arms."""
