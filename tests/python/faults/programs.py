"""Parts of the programs that several tests run."""

#: An actor that answers, and whose other methods never end.
NEVER = """
@skate.remote(num_cpus=0)
class Never:
    async def wait(self):
        await asyncio.Event().wait()

    async def stream(self):
        await asyncio.Event().wait()
        yield 1

    async def ok(self):
        return "ok"
"""
