"""Mutants that a tool draws: which of them do the tests notice?"""
