"""What people read: the page of a report or an evaluation, several reports, comparisons, model card and bill of materials.

command: `tinkit report`; compare: `tinkit compare`; a template lies beside the module that fills it.
"""
