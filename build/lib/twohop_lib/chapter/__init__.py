"""What a chapter's cell calls."""
