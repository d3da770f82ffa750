"""Images that the project draws itself, so that the whole job runs and is scored with no download."""
