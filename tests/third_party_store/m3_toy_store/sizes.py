"""How much a collection takes; ``m3 bench`` measures it, and ``m3 bench plan`` calculates it."""

from m3_connectors.backends.planning import Formula, Part, Plan, QueryCost


async def disk_bytes(backend, directory):
    schema = backend.schema
    return {"dense": 4 * schema.model.dimension * await backend.count()}


def plan(shape):
    size = 4 * shape.dimension
    cost = QueryCost(0, 0, shape.products, "this package")
    return Plan("toy", shape, (Part("dense", size, size, "4·d", "L"),), 1.0, 1.0, cost, ())


FORMULA = Formula(plan)
