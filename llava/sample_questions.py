"""The texts and pictures of the questions that come with the package."""

from __future__ import annotations

from llava.images import Drawing

# (text, label); all of one cycle. The longest stands early, so that a short list already has it.
TEXTS = (
    ("Which of these animals is a mammal?\nA. a trout\nB. a bat\nC. a sparrow", "B"),
    (
        "Context: The diagram shows two bar magnets. The ends that face each other are labelled N and S. "
        "The magnets are 4 cm apart.\nWill these magnets attract or repel each other?\nA. attract\nB. repel",
        "A",
    ),
    (
        "Context: The passage below describes an experiment. Read the passage and think about the variables.\n\n"
        "Marta wanted to know whether the colour of a pot changes how fast the soil in it dries. She filled six white "
        "pots and six black pots with the same amount of the same soil and poured half a cup of water into each. She "
        "placed all the pots in a row on a sunny balcony and pushed a small moisture meter into every one of them. "
        "Every morning at eight o'clock she wrote down the reading of each meter, until all the soil was dry. The "
        "weather did not change during the week, and nobody watered the pots in between.\n"
        "Hint: An independent variable is a variable whose effect you are investigating. A dependent variable is a "
        "variable that you measure.\nFigure: pots on a balcony.\n"
        "Which of the following was the independent variable in this experiment?\nA. the colour of the pots\n"
        "B. the reading of the moisture meters\nC. the amount of soil in the pots\nD. the number of sunny days",
        "A",
    ),
    ("What is the capital of the state marked on the map?\nA. Salem\nB. Boise\nC. Olympia\nD. Helena", "C"),
    ("Is a granite boulder a pure substance or a mixture?\nA. a pure substance\nB. a mixture", "B"),
    (
        "Context: Select the better estimate.\nHow long is a new pencil?\nA. 19 centimetres\nB. 19 metres",
        "A",
    ),
    (
        "Which word would you find on a dictionary page with these guide words?\nlamp - linen\n"
        "A. lace\nB. lemon\nC. lumber",
        "B",
    ),
    (
        "Context: In a group of pea plants, some have purple flowers and others have white flowers. The gene for "
        "flower colour has two alleles. The allele for purple flowers is dominant over the allele for white flowers.\n"
        "What is the expected ratio of plants with purple flowers to plants with white flowers?\n"
        "A. 0:4\nB. 1:3\nC. 2:2\nD. 3:1\nE. 4:0",
        "D",
    ),
    ("Which of these continents does the equator cross?\nA. Europe\nB. Africa\nC. Antarctica", "B"),
    (
        "Context: Two glasses hold the same amount of water. One stands in the shade, the other in the sun.\n"
        "In which glass do the water particles have more kinetic energy on average?\n"
        "A. the glass in the shade\nB. the glass in the sun\nC. neither; it is the same",
        "B",
    ),
    ("Which property do these three objects have in common?\nA. stretchy\nB. transparent\nC. fragile", "C"),
    (
        "Context: This food web shows how matter moves between the organisms of a pond. Arrows point from what is "
        "eaten to what eats it. The water flea eats algae, the stickleback eats the water flea, and the heron eats "
        "the stickleback.\nWhich of these organisms is a producer?\nA. the algae\nB. the heron\nC. the water flea",
        "A",
    ),
    ("Would you find the word café on a page with the guide words cab - calf?\nA. yes\nB. no", "A"),
    ("Which figure of speech is used?\nThe wind whispered through the dry grass.\nA. personification\nB. irony", "A"),
    (
        "Context: The table shows the average temperature of a town: 3 °C in January, 9 °C in April, 18 °C in July, "
        "11 °C in October.\nIn which month is it warmest?\nA. January\nB. April\nC. July\nD. October",
        "C",
    ),
    ("Which of these organs controls breathing?\nA. the brain\nB. the skeleton", "A"),
    (
        "Context: Look at the picture of a lever. The load is close to the pivot, and the hand pushes far from it.\n"
        "Compared with lifting the load directly, how large is the force of the hand?\n"
        "A. smaller\nB. the same\nC. larger",
        "A",
    ),
    ("What can a gardener and a baker trade?\nA. flour for tomatoes\nB. nothing", "A"),
    (
        "Context: Solution 1 has 4 blue particles and solution 2 has 7 blue particles. Both have the same volume.\n"
        "Which solution has a higher concentration of blue particles?\nA. solution 1\nB. solution 2\nC. neither",
        "B",
    ),
    ("Select the chemical formula of water.\nA. H2O\nB. CO2\nC. NaCl\nD. O2", "A"),
)
TEXT_ONLY = frozenset({6, 15})  # positions in the cycle
MODES = ("RGB", "L", "RGBA", "P", "CMYK")
SIZES = ((320, 240), (96, 200), (17, 5), (640, 480), (128, 128), (1, 1), (500, 120))


def picture(index: int) -> Drawing:
    """The picture of question `index` (from 0)."""
    return Drawing(size=SIZES[index % len(SIZES)], mode=MODES[index % len(MODES)], seed=index)
