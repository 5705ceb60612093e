"""A Streamlit app whose page shows which process it talks to, what that process remembers, and what was uploaded to it.

A session lives in one worker: the page's WebSocket made it, and only that process knows the address that a file is
uploaded to.
"""

import hashlib
import os

import streamlit as st

st.title("Does everything come back to its worker?")
st.session_state.setdefault("clicks", 0)
if st.button("Count"):
    st.session_state.clicks += 1
st.markdown(f"worker={os.getpid()} clicks={st.session_state.clicks}")

# Over a request of its own, beside the WebSocket.
uploaded = st.file_uploader("A file")
if uploaded is not None:
    content = uploaded.getvalue()
    st.markdown(f"bytes={len(content)} sha256={hashlib.sha256(content).hexdigest()}")
