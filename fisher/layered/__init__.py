"""A model taken apart at its layers, so that one of them at a time is enough.

stack       where a model keeps its layers
frame       how the model itself calls each of them
survey      what a dry call of the model shows: refusals, and which weights come before the layers
slots       weights put into a model that holds none, and taken out again
part        the squares of one part for one batch, given the gradient that leaves it
boundaries  where what passes between layers is kept
halves      a tied weight's gradient, kept between its head and its embedding
"""
