"""The quota decision: may this account do this now?"""
