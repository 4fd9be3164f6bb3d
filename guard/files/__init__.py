"""Name and find files: uploads, results, and what a prompt refers to, each within its owner's reach."""
