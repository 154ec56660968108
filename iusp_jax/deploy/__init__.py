"""A trained tagger in use: tagging recordings, and export to devices."""
