"""The kitchen: every stage of the lane, each with its config, its engine and its thin Ray Serve deployment."""
