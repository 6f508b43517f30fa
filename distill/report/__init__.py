"""The report of a study: tables, figures and sentences, from stored results alone."""
