"""Look inside a job's results: is each file its own, whole, and what the graph asked for?

`checks` checks a job's files, `judgement` decides what their faults come to. `containers` tells what a file is and
whether it is complete, `image_files` and `film_files` decode it, `content` says whether it shows anything, `expected`
what the graph asked for, `budget` bounds the work, `within` its time, `findings` names what can be wrong. `opener`
serves only what passed, `previews` makes it small, `quarantine` keeps what did not pass. `metadata` (of films:
`metadata_films`) takes the prompt out of what is sold. `reported` makes what nodes say such that everybody can read it.
"""
