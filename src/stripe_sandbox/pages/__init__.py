"""What a customer sees in a browser. Plain HTML without scripts; everything shown is escaped."""
