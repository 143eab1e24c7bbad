"""What compression did to the model, measured on a user's own pictures: `tinkit evaluate`.

Every module is one question. Each takes plain arrays (a row a picture, teacher and student in the same order), returns a
block of plain data for evaluation.json and the report, and says in `measures` which of its numbers a budget may name.
"""
