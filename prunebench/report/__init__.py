"""What is made from records: tables, figures and pages. Nothing here runs a model."""
