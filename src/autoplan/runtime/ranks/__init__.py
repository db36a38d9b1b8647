"""The processes of a run: started, agreed, watched, and ended with one message."""
