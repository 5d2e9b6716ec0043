"""Values: frozen, validated where they are made, and free of I/O."""
