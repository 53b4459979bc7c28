"""The live page at `/` of the debug port: pods, decisions and figures as they run.

What is seen is read by `sight`, made into plain values by `rows` and `tally`, sent by `hub` to
whoever looks, and served with the page itself by `pages`. `reach` asks whether pods answer, while
somebody looks. Nothing here is called on the path of a request, and nothing runs while nobody
looks.
"""
