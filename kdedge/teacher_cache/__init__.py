"""A teacher's logits, computed once for each view of a sample and replayed with the very pixels or tokens of it.

``memory`` keeps them for one run. The rest keeps them in files, for the runs that follow the same teacher: ``key``
(whose logits they are), ``layout`` and ``view_file`` (bytes), ``folder`` (one cache), ``claims`` (who is at it),
``build`` and ``ahead`` (with and without a run), ``root`` (all caches).
"""
