"""What becomes of numbers: tables, pages, figures, and reports side by side."""
