"""What the teacher additionally sees, whose weights it has, how it aligns."""
