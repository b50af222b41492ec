"""What an ecosystem is: the spec, the files it names, and whether its parts go together."""
