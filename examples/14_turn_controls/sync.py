"""Steer a running turn, and interrupt one."""

from codex_app_server import Codex, InvalidRequestError

with Codex() as codex:
    thread = codex.thread_start()

    turn = thread.turn("Count from 1 to 50, each number on a line of its own.")
    for notification in turn.stream():
        if notification.method == "item/agentMessage/delta":
            break
    # Breaking off the loop left the turn running, and what it sends is kept.
    try:
        turn.steer("Stop counting and say which number you liked best.")
    except InvalidRequestError:
        print("the turn was over before it could be steered")
    result = turn.run()
    print("steered:", result.status, "-", result.final_response)

    turn = thread.turn("Write a very long poem.")
    for notification in turn.stream():
        if notification.method == "item/agentMessage/delta":
            # No error if it is over by now.
            turn.interrupt()
            break
    print("interrupted:", turn.run().status)
