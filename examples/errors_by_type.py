"""One `except` clause for each thing that calls for another answer; nothing looks at an errno or at a text."""

import asyncio
import socket

import aioconnect
from aioconnect import errors

ONCE = aioconnect.Policy(max_attempts=1, attempt_timeout=1)


async def try_out(target: str) -> None:
    answer = "all is well"
    try:
        async with aioconnect.connect(target, policy=ONCE) as conn:
            await conn.readexactly(1000)
    except aioconnect.ConnectTimeout:
        answer = "silence: a firewall, or nobody home"
    except errors.NameNotFound:
        answer = "a typing error, or a deployment that has not happened yet"
    except errors.SocketPathNotFound:
        answer = "its server has not started"
    except aioconnect.TLSError as error:
        answer = f"no retry will heal that: {error.code}"
    except aioconnect.ConnectError as error:
        answer = f"no connection, so asking again is safe: {error.code} is {error.kind}"
    except aioconnect.PeerClosed as error:
        answer = f"the connection ended inside a message, of which {len(error.partial)} bytes came"
    except aioconnect.ConnectionLost as error:
        answer = f"the connection is dead; what was sent may have arrived: {error.code}"
    print(f"{target:<24}  {answer}")


async def main() -> None:
    server = await asyncio.start_server(greet_and_leave, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # A listener whose queue is full drops what comes, as a firewall does.
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    with full, socket.create_connection(full.getsockname()):
        await try_out("127.0.0.1:1")
        await try_out(f"127.0.0.1:{full.getsockname()[1]}")
        await try_out(f"127.0.0.1:{port}")
        await try_out(f"tls://127.0.0.1:{port}")
        await try_out("no-such-name.invalid:80")
        await try_out("unix:no-such.sock")
    server.close()


async def greet_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 ready\r\n")
    writer.write_eof()
    await reader.read()
    writer.close()


asyncio.run(main())
