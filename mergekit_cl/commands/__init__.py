"""One thin file per command: options, one library call, one renderer. They load click alone."""
