"""What the pages of ROOTS are made of: one frame and style, and the tabs of an inspection."""
