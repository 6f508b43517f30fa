"""Reports: tables in the terminal, figures, and the HTML page of a study."""
