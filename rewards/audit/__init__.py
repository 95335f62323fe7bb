"""``rlreason audit``: does a reward keep its contract, can it be gamed, and how often is it wrong?

``conduct.audit`` is the door: it runs the reward in guarded child processes (``runner``, ``child``, ``watch``), on its
contract (``contract``), on attacks made of problems and their references (``attacks``, ``redteam``) and on labelled
answers (``labelled``, ``calibrate``). ``gate`` tells whether a reward of a recipe has an audit that it passed.
"""
